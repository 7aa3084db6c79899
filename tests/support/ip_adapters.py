"""IP-Adapters made by tests: those of the benchmarks, by the name of a tiny architecture."""

from __future__ import annotations

from typing import Any

from support.tiny_architectures import TINY

from sdengine.benchmarks import seeded_ip_adapters
from sdengine.benchmarks.seeded_ip_adapters import HIDDEN as HIDDEN
from sdengine.benchmarks.seeded_ip_adapters import IDENTITY as IDENTITY
from sdengine.benchmarks.seeded_ip_adapters import IMAGE as IMAGE
from sdengine.benchmarks.seeded_ip_adapters import PATCH as PATCH
from sdengine.benchmarks.seeded_ip_adapters import PROJECTION as PROJECTION
from sdengine.benchmarks.seeded_ip_adapters import Tensors as Tensors
from sdengine.benchmarks.seeded_ip_adapters import image_processor as image_processor
from sdengine.benchmarks.seeded_ip_adapters import picture as picture
from sdengine.benchmarks.seeded_ip_adapters import save_encoder as save_encoder
from sdengine.benchmarks.seeded_ip_adapters import save_ip_adapter as save_ip_adapter


def make_ip_adapter(family: str, kind: str = "plain", **options: Any) -> Tensors:
    """Return the tensors of an adapter by name; see `seeded_ip_adapters.make_ip_adapter`."""
    return seeded_ip_adapters.make_ip_adapter(TINY[family].unet, kind, **options)
