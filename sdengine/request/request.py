"""Request: what a caller asks for, each field listed and described once, checked before any work.

Its fields are the one list of them: checks, JSON, the command's options, the documents of
`Engine.generate` and the labels of the web UI's text are made from it.
"""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.recorded import read_record
from sdengine.request.control import read_controls
from sdengine.request.embeddings import Embeddings, read_embedding_records
from sdengine.request.fields import (
    PROMPT,
    Choice,
    FieldInfo,
    Integer,
    Interval,
    Name,
    Number,
    OneOrEach,
    Pair,
    about,
    as_arguments,
    field_infos,
)
from sdengine.request.hires_fields import MAX_SIDE, MAX_STEPS
from sdengine.request.ip_adapters import read_ip_adapters
from sdengine.request.picture_fields import FILES, OPTIONS_OF, PICTURES, PictureFields
from sdengine.request.region import REGION_OPTIONS, RegionFields, read_regions
from sdengine.request.tile_fields import TILE_OPTIONS, TileFields
from sdengine.request.weight_fields import (
    WeightFields,
    read_hypernetwork_records,
    read_lora_records,
    read_model_records,
)

MAX_BATCH = 256
MAX_SEED = 2**64 - 1
SIZE_MULTIPLE = 8
EMPHASIS = ("original", "no_norm", "none", "literal")
NOISE_KINDS = ("cpu", "cuda")
DECODERS = ("vae", "tiny")
JSON_VERSION = 1

_PROMPTS = OneOrEach(PROMPT)
_SIDE = Integer(SIZE_MULTIPLE, MAX_SIDE, SIZE_MULTIPLE)
_IMAGE_SIDE = Integer(SIZE_MULTIPLE, MAX_SIDE)  # whose multiple is asked for without a picture
_SEED = Integer(0, MAX_SEED)
_SHARE = Number(0, 1)
_SIDES_HELP = "pixels, multiples of 8; with image any number, by default its own"
_WHOLE = (0.0, 1.0)
# Fields that JSON holds as lists: of objects, with their reader and the fields that belong to them;
# and of records, which are None where the engine decides, with their reader.
_OBJECTS: Mapping[str, tuple[Callable[[Any], Any], Sequence[str]]] = {
    "controls": (read_controls, ()),
    "ip_adapters": (read_ip_adapters, ()),
    "regions": (read_regions, REGION_OPTIONS),
}
_RECORDS: Mapping[str, Callable[[str, Any], Any]] = {
    "embeddings": read_embedding_records,
    "loras": read_lora_records,
    "model": read_model_records,
    "hypernetworks": read_hypernetwork_records,
}
_NAME = Name("a name; `sdengine samplers` lists them")


@dataclass(frozen=True)
class Request(PictureFields, RegionFields, TileFields, WeightFields):
    """One request for images, from noise or from a picture; constructing it checks every field.

    Args:
        {fields}

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.
    """

    prompt: str | tuple[str, ...] = field(metadata=about(_PROMPTS, "what to show"))
    negative_prompt: str | tuple[str, ...] = field(
        default="",
        metadata=about(
            _PROMPTS,
            "what to avoid, where guidance_scale is more than 1",
            option="negative",
        ),
    )
    width: int = field(default=512, metadata=about(_IMAGE_SIDE, _SIDES_HELP, ("Size",)))
    height: int = field(default=512, metadata=about(_IMAGE_SIDE, _SIDES_HELP, ("Size",)))
    steps: int = field(
        default=25,
        metadata=about(Integer(1, MAX_STEPS), "sampler steps", ("Steps",), "num_inference_steps"),
    )
    guidance_scale: float = field(
        default=7.5,
        metadata=about(
            Number(0, 100),
            "how far to follow the prompt; up to 1 the unconditional half is not computed",
            ("CFG scale",),
            option="guidance",
        ),
    )
    guidance_rescale: float = field(
        default=0.0,
        metadata=about(
            _SHARE,
            "how far guidance keeps the contrast of the conditional output",
            ("CFG Rescale", "CFG Rescale φ"),
        ),
    )
    guidance_interval: tuple[float, float] = field(
        default=_WHOLE,
        metadata=about(
            Interval(0, 1),
            "the steps that are guided, from one fraction of them up to another; the others "
            "compute no unconditional half",
            ("CFG interval",),
        ),
    )
    sampler: str = field(
        default="dpmpp_2m", metadata=about(_NAME, "as `sdengine samplers` lists them", ("Sampler",))
    )
    schedule: str = field(
        default="karras",
        metadata=about(_NAME, "of noise levels; listed there too", ("Schedule type",)),
    )
    eta: float | None = field(
        default=None,
        metadata=about(
            _SHARE,
            "share of each step's noise that is fresh; by default the sampler's own",
            ("Eta", "Eta DDIM"),
        ),
    )
    s_noise: float | None = field(
        default=None,
        metadata=about(
            Number(0, 2), "factor on fresh noise; by default the sampler's own", ("Sigma noise",)
        ),
    )
    s_churn: float | None = field(
        default=None,
        metadata=about(
            Number(0, 1000),
            "noise added before each step, by default none",
            ("Sigma churn",),
        ),
    )
    s_tmin: float | None = field(
        default=None,
        metadata=about(Number(0, 1e6), "lowest noise level that churns", ("Sigma tmin",)),
    )
    s_tmax: float | None = field(
        default=None,
        metadata=about(Number(0, 1e6), "highest noise level that churns", ("Sigma tmax",)),
    )
    seed: int | tuple[int, ...] = field(
        default=0,
        metadata=about(OneOrEach(_SEED), "of the noise; image i uses seed + i", ("Seed",)),
    )
    batch_size: int = field(
        default=1,
        metadata=about(
            Integer(1, MAX_BATCH),
            "images; by default as many as a list of prompts or seeds has",
            alias="num_images_per_prompt",
            option="batch",
        ),
    )
    variation_seed: int | None = field(
        default=None,
        metadata=about(
            _SEED, "of a second noise; image i uses variation_seed + i", ("Variation seed",)
        ),
    )
    variation_strength: float = field(
        default=0.0,
        metadata=about(
            _SHARE, "how far the noise goes over to the second one", ("Variation seed strength",)
        ),
    )
    seed_width: int | None = field(
        default=None,
        metadata=about(
            _SIDE,
            "pixels of the image size whose noise is taken, with seed_height",
            ("Seed resize from",),
        ),
    )
    seed_height: int | None = field(
        default=None, metadata=about(_SIDE, "the same, with seed_width", ("Seed resize from",))
    )
    noise: str = field(
        default="cpu",
        metadata=about(
            Choice(NOISE_KINDS), "whether as torch's CPU or CUDA generator draws it", ("RNG",)
        ),
    )
    emphasis: str = field(
        default="original",
        metadata=about(Choice(EMPHASIS), "what weights in prompts do", ("Emphasis",)),
    )
    clip_skip: int | None = field(
        default=None,
        metadata=about(
            Integer(1, 12),
            "1, the default, takes the hidden state that the checkpoint asks for, 2 that of the "
            "layer before it; diffusers counts from 0, so that its clip_skip=1 is 2 here",
            ("Clip skip",),
        ),
    )
    embeddings: tuple[Embedding, ...] | None = field(
        default=None,
        metadata=about(
            Embeddings(),
            "textual inversions that the prompts may name: paths, sdengine.Embedding, or a dict of "
            "them by name; by default those that the engine was given",
            option="embedding",
        ),
    )
    decoder: str = field(
        default="vae",
        metadata=about(
            Choice(DECODERS),
            "what makes pixels of latents; the bundle's tiny decoder takes a fraction of the time",
            ("VAE Decoder",),
        ),
    )
    original_size: tuple[int, int] | None = field(
        default=None,
        metadata=about(
            Pair(1, MAX_SIDE), "SDXL: width and height of the original; by default the image's"
        ),
    )
    crop: tuple[int, int] = field(
        default=(0, 0),
        metadata=about(Pair(0, MAX_SIDE), "SDXL: left and top of the crop"),
    )
    target_size: tuple[int, int] | None = field(
        default=None,
        metadata=about(Pair(1, MAX_SIDE), "SDXL: those asked for; by default the image's"),
    )
    aesthetic_score: float = field(
        default=6.0, metadata=about(Number(0, 100), "SDXL refiner: what the prompt's rows are told")
    )
    negative_aesthetic_score: float = field(
        default=2.5, metadata=about(Number(0, 100), "SDXL refiner: what the negative's are told")
    )

    def __post_init__(self) -> None:
        for name, info in FIELDS.items():
            value = getattr(self, name)
            if value is not info.default:  # which a test checks once for all
                self._set(name, info.checked(value))
        for name in ("prompt", "negative_prompt", "seed", "hires_prompt", "hires_negative_prompt"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                self._take_count(name, len(value))
        for name in ("seed", "variation_seed"):
            self._check_last_seed(name)
        self.check_pictures(FIELDS)
        self.check_tiles()
        self.check_regions()
        if self.image is not None:
            is_whole = self.inpaint_area == "whole"
            self.check_outpaint(self.image, (self.width, self.height) if is_whole else None)
        if self.image is None:
            for name in ("width", "height"):
                _SIDE(name, getattr(self, name))
            self.check_hires(self.width, self.height, self.steps)
        elif self.num_steps_run == 0:
            raise ConfigError.for_field(
                "strength",
                self.strength,
                f"at least {1 / self.steps:.4g}, so that one of {self.steps} steps runs",
            )
        elif self.num_schedule_steps > MAX_STEPS:
            raise ConfigError.for_field(
                "strength",
                self.strength,
                f"at least {self.steps / MAX_STEPS:g} where strength_rule is exact, so that "
                f"{self.steps} of at most {MAX_STEPS} steps run",
            )
        if (self.seed_width is None) != (self.seed_height is None):
            raise ConfigError("seed_width, seed_height: give both or neither.")
        if self.variation_strength > 0 and self.variation_seed is None:
            raise ConfigError.for_field(
                "variation_seed", None, "a seed, because variation_strength is not 0"
            )

    def _take_count(self, name: str, count: int) -> None:
        """Let a tuple of one value an image say how many images there are."""
        if self.batch_size == 1 and 1 <= count <= MAX_BATCH:
            self._set("batch_size", count)
        if count != self.batch_size:
            raise ConfigError(
                f"{name}: {count} values for {self.batch_size} images. Give one value for all "
                f"images, or one an image, at most {MAX_BATCH}."
            )

    def _check_last_seed(self, name: str) -> None:
        seed = getattr(self, name)
        if isinstance(seed, int) and seed + self.batch_size - 1 > MAX_SEED:
            accepted = f"at most {MAX_SEED - self.batch_size + 1} for {self.batch_size} images"
            raise ConfigError.for_field(name, seed, accepted)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each image."""
        return self._for_each(self.prompt)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompt of each image."""
        return self._for_each(self.negative_prompt)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        if isinstance(self.seed, tuple):
            return self.seed
        return tuple(self.seed + index for index in range(self.batch_size))

    @property
    def uses_guidance(self) -> bool:
        """Whether guidance scale and interval ask for the unconditional half at some step."""
        return self.guidance_scale > 1.0 and len(self.guided_steps) > 0

    @property
    def is_guided_throughout(self) -> bool:
        """Whether the guidance interval is that of all steps."""
        return self.guidance_interval == _WHOLE

    @property
    def guided_steps(self) -> range:
        """The steps k of the n that run, counted from 0, for which lo <= k / n < hi.

        Source: "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models" (Kynkäänniemi et al. 2024), section 3. Its interval is one of noise
        levels; this one is in fractions of the steps, whichever sampler and schedule they are of.
        """
        count = self.num_steps_run
        first, end = (
            sum(step / count < bound for step in range(count)) for bound in self.guidance_interval
        )
        return range(first, end)

    @property
    def num_steps_run(self) -> int:
        """How many of the schedule's last steps run."""
        return self.steps if self.image is None else self.steps_run(self.steps)

    @property
    def num_schedule_steps(self) -> int:
        """How many steps the schedule has, of which the last `num_steps_run` run."""
        return self.steps if self.image is None else self.schedule_steps(self.steps)

    def only(self, index: int) -> Request:
        """Return the request that makes image `index` alone."""
        variation_seed = self.variation_seed
        return replace(
            self,
            prompt=self.prompts[index],
            negative_prompt=self.negative_prompts[index],
            **{
                name: value[index]
                for name in ("hires_prompt", "hires_negative_prompt")
                if isinstance(value := getattr(self, name), tuple)
            },
            seed=self.seeds[index],
            batch_size=1,
            variation_seed=None if variation_seed is None else variation_seed + index,
        )

    def to_json(self) -> str:
        """Return the request as one line of JSON: every field by name, and a `version`.

        Seeds may need 64 bits, which JavaScript's numbers do not hold.
        """
        return json.dumps({"version": JSON_VERSION, **self.to_dict()}, ensure_ascii=False)

    def to_dict(self) -> dict[str, Any]:
        """Return every field by name as JSON holds it; those of a picture only with it."""
        values = asdict(self)
        # What is not given is left out, as releases wrote it that did not know it.
        for name, (_, options) in _OBJECTS.items():
            values[name] = [one.to_dict() for one in getattr(self, name)]
            if not values[name]:
                values = {k: value for k, value in values.items() if k not in (name, *options)}
        for name in _RECORDS:
            given = getattr(self, name)
            if given is None:
                del values[name]
            else:
                values[name] = [one.record() for one in given]
        if self.seamless == "none":
            del values["seamless"]
        if not self.tiled_diffusion:
            for name in ("tiled_diffusion", *TILE_OPTIONS):
                del values[name]
        for needed, names in OPTIONS_OF.items():
            givers = needed.split(" or ")
            absent = [name for name in givers if getattr(self, name) is None]
            left_out = [*absent, *names] if absent == givers else absent
            values = {name: value for name, value in values.items() if name not in left_out}
        files = {name: getattr(self, name) for name in FILES if values.get(name) is not None}
        return values | {name: file.record() for name, file in files.items()}

    @classmethod
    def from_json(cls, text: str | bytes) -> Request:
        """Read what `to_json` wrote, from whomever.

        Fields that are left out, other than `prompt`, have the defaults of this class.

        Raises:
            ConfigError: it is no JSON object of this version, or a field is unknown, missing, of
                the wrong type or out of range; the message names it.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("request: it is not valid JSON.") from None
        if not isinstance(content, dict):
            raise ConfigError("request: its JSON is not an object of fields by name.")
        version = content.pop("version", None)
        if type(version) is not int or version != JSON_VERSION:
            raise ConfigError.for_field("version", version, str(JSON_VERSION))
        return cls(**read_fields(content))

    def _for_each(self, value: str | tuple[str, ...]) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else (value,) * self.batch_size


FIELDS: Mapping[str, FieldInfo] = MappingProxyType(field_infos(Request))
Request.__doc__ = str(Request.__doc__).format(fields=as_arguments(FIELDS.values(), 8))


def read_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return some fields of a request as it holds them, of JSON from whomever.

    Those that are left out stay so. A picture is a record of one: no path in it is opened.

    Raises:
        ConfigError: one is unknown or not acceptable, or the prompt is missing.
    """
    refuse_unknown(values)
    if "prompt" not in values:
        raise ConfigError("prompt: it is missing.")
    for name in FILES:
        if values.get(name) is not None:
            record = read_record(name, values[name], has_size=name in PICTURES)
            values = {**values, name: record}
    for name, (read, _) in _OBJECTS.items():
        if name in values:
            values = {**values, name: read(values[name])}
    for name, read_records in _RECORDS.items():
        if values.get(name) is not None:
            values = {**values, name: read_records(name, values[name])}
    request = Request(**values)
    return {name: getattr(request, name) for name in values}


def refuse_unknown(
    names: Mapping[str, Any], also: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Raise ConfigError for the first of the names that is no field and not among the others."""
    for name in sorted(names.keys() - FIELDS.keys() - also.keys()):
        near = nearest_field(name, also)
        hint = f" Did you mean {near}?" if near else ""
        raise ConfigError(f"{name[:80]!r}: a request has no such field in this release.{hint}")


# What other tools call a field, where that is near to none of its own names.
_ELSEWHERE = {
    "cfg": "guidance_scale",
    "scale": "guidance_scale",
    "ddim_steps": "steps",
    "sampling_steps": "steps",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "n_samples": "batch_size",
}


def nearest_field(name: str, also: Mapping[str, Any] = MappingProxyType({})) -> str | None:
    """Return the field, or other known name, that a wrong name is probably meant for."""
    known = {label.lower().replace(" ", "_"): i.name for i in FIELDS.values() for label in i.labels}
    known |= {**_ELSEWHERE, **{one: one for one in (*FIELDS, *also)}}
    near = difflib.get_close_matches(name[:80].lower().replace("-", "_"), known, n=1)
    return known[near[0]] if near else None


def random_seed() -> int:
    """Draw a seed of 32 bits: what every other tool accepts."""
    return secrets.randbelow(2**32)
