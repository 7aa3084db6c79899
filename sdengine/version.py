"""Version of the package: what metadata, bundles and `sdengine --version` tell."""

__version__ = "0.1.0"
