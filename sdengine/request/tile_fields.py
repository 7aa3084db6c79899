"""Request fields of tiles: those that the U-Net computes, and pictures that are such themselves."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdengine.errors import ConfigError
from sdengine.request.fields import Choice, Flag, Integer, Pair, about

# What has no meaning without `tiled_diffusion`.
TILE_OPTIONS = ("tile_size", "tile_overlap")
SEAMLESS = ("none", "x", "y", "xy")
_MULTIPLE = 8
_LEAST_TILE, _MOST_TILE = 64, 4096
_LEAST_OVERLAP = 32
_OVERLAP = Integer(_LEAST_OVERLAP, 3 * _MOST_TILE // 4, _MULTIPLE)


@dataclass(frozen=True, kw_only=True)
class TileFields:
    """Those fields of a request that are about tiles; see `sdengine.Request`."""

    tiled_diffusion: bool = field(
        default=False,
        metadata=about(
            Flag(),
            "run the U-Net on overlapping tiles and average what it predicts, for pictures larger "
            "than memory or the bundle's sizes allow at once",
        ),
    )
    tile_size: tuple[int, int] | None = field(
        default=None,
        metadata=about(
            Pair(_LEAST_TILE, _MOST_TILE),
            "tiled_diffusion: width and height of a tile in pixels, multiples of 8; by default the "
            "bundle's usual size",
        ),
    )
    tile_overlap: int | None = field(
        default=None,
        metadata=about(
            _OVERLAP,
            "tiled_diffusion: pixels that tiles next to each other share, multiples of 8 up to "
            "three quarters of a tile's shorter side; by default half of it",
        ),
    )

    seamless: str = field(
        default="none",
        metadata=about(
            Choice(SEAMLESS),
            "edges that meet where copies of the picture lie side by side: left and right (x), top "
            "and bottom (y), or both",
            ("Tiling",),
        ),
    )

    def check_tiles(self) -> None:
        """Refuse tiles without a use, and such as do not get on from one to the next.

        Raises:
            ConfigError: so it is.
        """
        if not self.tiled_diffusion:
            for name in TILE_OPTIONS:
                if (value := getattr(self, name)) is not None:
                    hint = "Give tiled_diffusion, or leave it out."
                    raise ConfigError.for_field(
                        name, value, "its default without tiled_diffusion", hint
                    )
        if self.tile_size is None:
            return
        if any(side % _MULTIPLE for side in self.tile_size):
            accepted = f"two multiples of {_MULTIPLE}"
            raise ConfigError.for_field("tile_size", self.tile_size, accepted)
        most = min(self.tile_size) * 3 // 4
        if self.tile_overlap is not None and self.tile_overlap > most:
            accepted = f"at most {most}, three quarters of the tile's shorter side"
            hint = "Give a larger tile_size, or less."
            raise ConfigError.for_field("tile_overlap", self.tile_overlap, accepted, hint)


def usual_overlap(tile: tuple[int, int]) -> int:
    """Return the overlap in pixels of tiles for which none is given."""
    return max(_LEAST_OVERLAP, min(tile) // 2 // _MULTIPLE * _MULTIPLE)
