"""What exported pages need of others' programs: reveal.js for slides, MathJax for formulas.

Both lie beside the pages, so that these work without a network. They come out of two packages of the
Python registry, which pip downloads once, into `build/wheels`, and nothing is installed: reveal.js 5 (MIT
licence) is part of sphinx-revealjs, MathJax 2.7 (Apache licence) of jupyter-server-mathjax. Where there is
no network, put the two files into `build/wheels` yourself.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class AssetError(Exception):
    """A program that the pages need and that cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """A program inside a wheel.

    Args:
        name: of the folder that it is put into.
        wheel: file name, as the registry has it; `sha256` of it.
        inside: where in the wheel it begins.
        wanted: what its paths, from there on, begin with.
        unwanted: and must not begin with.
        mended: texts in its files, and what stands in their place.
    """

    name: str
    wheel: str
    sha256: str
    inside: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    mended: tuple[tuple[str, str], ...] = ()

    @property
    def requirement(self) -> str:
        distribution, version = self.wheel.split("-")[:2]
        return f"{distribution.replace('_', '-')}=={version}"

    def keeps(self, path: str) -> bool:
        return (
            path.startswith(self.wanted) and not path.startswith(self.unwanted) and not path.endswith(".map")
        )


REVEAL = Asset(
    "reveal",
    "sphinx_revealjs-3.2.1-py3-none-any.whl",
    "805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
    "sphinx_revealjs/_static/revealjs/",
    ("dist/reveal.js", "dist/reveal.css", "dist/reset.css", "plugin/notes/notes.js"),
)
MATHJAX = Asset(
    "mathjax",
    "jupyter_server_mathjax-0.2.6-py3-none-any.whl",
    "416389dde2010df46d5fbbb7adb087a5607111070af65a1445391040f2babb5e",
    "jupyter_server_mathjax/static/",
    ("MathJax.js", "config/", "extensions/", "fonts/", "jax/"),
    ("extensions/a11y/", "jax/output/SVG/"),
    # A font that is to be empty, and that browsers complain of.
    (('''src:"url('about:blank')"''', '''src:"local('-')"'''),),
)


def wheel_of(asset: Asset, wheels: Path = BUILD / "wheels") -> Path:
    """The wheel on disk, downloaded if it is not there; its bytes are those that are expected.

    Raises:
        AssetError: it cannot be downloaded, or is another.
    """
    path = wheels / asset.wheel
    if not path.exists():
        print(f"{asset.name}: downloading {asset.requirement}, once …", flush=True)
        wheels.mkdir(parents=True, exist_ok=True)
        _download(asset.requirement, wheels)
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != asset.sha256:
        raise AssetError(f"{path} is not the file that is expected; delete it and run the same command again")
    return path


def _download(requirement: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command = [*pip, "--only-binary=:all:", "--dest", str(folder), requirement]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        said = next((line for line in reversed(ended.stderr.splitlines()) if "ERROR" in line), "")
        raise AssetError(
            f"{requirement} cannot be downloaded ({said or 'pip says nothing'}); the first run needs the "
            f"network, later ones do not. Without one, put its wheel into {folder}"
        )


def unpack(asset: Asset, wheel: Path, into: Path) -> Path:
    """Lays the program beside the pages, unless it lies there already; returns its folder."""
    target = into / asset.name
    mark = target / "from.txt"
    if mark.exists() and mark.read_text(encoding="utf-8") == asset.sha256:
        return target
    with zipfile.ZipFile(wheel) as packed:
        for name in packed.namelist():
            path = name.removeprefix(asset.inside)
            if name.startswith(asset.inside) and path and not path.endswith("/") and asset.keeps(path):
                file = target / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(_mended(packed.read(name), asset.mended))
    mark.write_text(asset.sha256, encoding="utf-8")
    return target


def _mended(data: bytes, places: tuple[tuple[str, str], ...]) -> bytes:
    for old, new in places:
        data = data.replace(old.encode(), new.encode())
    return data


def provide(assets: tuple[Asset, ...], into: Path) -> None:
    """Everything named, beside the pages in `into`; raises as `wheel_of`."""
    for asset in assets:
        unpack(asset, wheel_of(asset), into)
