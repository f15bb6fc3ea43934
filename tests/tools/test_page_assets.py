"""What exported pages need lies beside them; nothing is downloaded here."""

import hashlib
import zipfile

import pytest

from tools import page_assets
from tools.page_assets import MATHJAX, REVEAL, Asset, AssetError, provide, unpack, wheel_of


@pytest.fixture
def asset(tmp_path):
    """An asset whose wheel lies in `tmp_path`."""
    path = tmp_path / "some_pages-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("some_pages/static/dist/a.js", "let a = 'about:blank';")
        packed.writestr("some_pages/static/dist/a.js.map", "map")
        packed.writestr("some_pages/static/dist/old/b.js", "b")
        packed.writestr("some_pages/static/docs/c.js", "c")
        packed.writestr("other/dist/d.js", "d")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    where = "some_pages/static/"
    return Asset("pages", path.name, digest, where, ("dist/",), ("dist/old/",), (("about:blank", "-"),))


def test_only_what_is_wanted_is_unpacked_and_mended(asset, tmp_path):
    folder = unpack(asset, wheel_of(asset, tmp_path), tmp_path / "build")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["dist/a.js", "from.txt"]
    assert (folder / "dist" / "a.js").read_text() == "let a = '-';"


def test_it_is_unpacked_once_for_each_version(asset, tmp_path):
    folder = unpack(asset, tmp_path / asset.wheel, tmp_path / "build")
    (folder / "dist" / "a.js").write_text("kept")
    unpack(asset, tmp_path / asset.wheel, tmp_path / "build")
    assert (folder / "dist" / "a.js").read_text() == "kept"
    (folder / "from.txt").write_text("another version")
    unpack(asset, tmp_path / asset.wheel, tmp_path / "build")
    assert (folder / "dist" / "a.js").read_text() != "kept"


def test_a_wheel_that_is_there_needs_no_network(asset, tmp_path, monkeypatch):
    monkeypatch.setattr(page_assets, "_download", lambda requirement, folder: pytest.fail("asks the network"))
    assert wheel_of(asset, tmp_path) == tmp_path / asset.wheel


def test_another_file_is_refused(asset, tmp_path):
    (tmp_path / asset.wheel).write_bytes(b"something else")
    with pytest.raises(AssetError, match="is not the file that is expected; delete it"):
        wheel_of(asset, tmp_path)


def test_without_a_network_the_remedy_is_told(asset, tmp_path, monkeypatch):
    class Ended:
        returncode, stderr = 1, "WARNING: x\nERROR: No matching distribution found for some-pages==1.2\n"

    asked = []
    monkeypatch.setattr(page_assets.subprocess, "run", lambda line, **_: asked.append(line) or Ended)
    with pytest.raises(AssetError) as error:
        wheel_of(asset, tmp_path / "wheels")
    assert "some-pages==1.2 cannot be downloaded (ERROR: No matching" in str(error.value)
    assert f"put its wheel into {tmp_path / 'wheels'}" in str(error.value)
    assert "--no-deps" in asked[0] and asked[0][-1] == "some-pages==1.2"


def test_all_are_provided(asset, tmp_path, monkeypatch):
    monkeypatch.setattr(page_assets, "wheel_of", lambda asset: tmp_path / asset.wheel)
    provide((asset,), tmp_path / "pages")
    assert (tmp_path / "pages" / "pages" / "dist" / "a.js").exists()


def test_the_two_programs_are_pinned():
    assert REVEAL.requirement == "sphinx-revealjs==3.2.1"
    assert MATHJAX.requirement == "jupyter-server-mathjax==0.2.6"
    assert REVEAL.keeps("dist/reveal.js") and not REVEAL.keeps("dist/theme/black.css")
    assert MATHJAX.keeps("jax/input/TeX/jax.js") and not MATHJAX.keeps("jax/output/SVG/jax.js")
