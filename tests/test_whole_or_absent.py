"""A file or folder appears whole; what fails leaves everything as it was."""

from pathlib import Path

import pytest

from hf_vitmae.whole_or_absent import unfinished_path, whole_or_absent


def fill(place: Path, kind: str, text: str = "new") -> None:
    """Write a file at the place, or a folder with one file."""
    if kind == "folder":
        place.mkdir()
        place = place / "part"
    place.write_text(text)


def content(path: Path) -> dict[str, str]:
    """What all files below hold."""
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_text() for file in files}


@pytest.mark.parametrize(("kind", "name"), [("file", "out"), ("folder", "out/part")])
def test_it_has_its_name_only_at_the_end(kind: str, name: str, tmp_path: Path) -> None:
    with whole_or_absent(tmp_path / "deep" / "er" / "out") as place:
        fill(place, kind)
        assert not (tmp_path / "deep" / "er" / "out").exists()
    assert content(tmp_path / "deep" / "er") == {name: "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_fails_leaves_nothing_and_not_its_parents(
    kind: str, error: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(error), whole_or_absent(tmp_path / "mine" / "deep" / "er" / "out") as place:
        fill(place, kind)
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_new_parent_that_others_use_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError), whole_or_absent(tmp_path / "deep" / "er" / "out") as place:
        fill(place, "folder")
        (tmp_path / "deep" / "note").write_text("mine")
        raise ValueError
    assert content(tmp_path) == {"deep/note": "mine"} and not (tmp_path / "deep" / "er").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_not_mixed_in(kind: str, tmp_path: Path) -> None:
    for left in ("file", "folder"):
        fill(unfinished_path(tmp_path / left), left, "half")
        with whole_or_absent(tmp_path / left) as place:
            assert not place.exists()
            fill(place, kind)
    assert set(content(tmp_path).values()) == {"new"}
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_a_folder_that_is_in_use_is_only_replaced_on_purpose(tmp_path: Path) -> None:
    fill(tmp_path / "out", "folder", "mine")
    with pytest.raises(OSError), whole_or_absent(tmp_path / "out") as place:
        fill(place, "folder")
    assert content(tmp_path) == {"out/part": "mine"}
    with pytest.raises(ValueError), whole_or_absent(tmp_path / "out", replace=True) as place:
        raise ValueError
    assert content(tmp_path) == {"out/part": "mine"}
    with whole_or_absent(tmp_path / "out", replace=True) as place:
        fill(place, "folder")
        assert content(tmp_path / "out") == {"part": "mine"}
    assert content(tmp_path) == {"out/part": "new"}


def test_an_empty_folder_and_a_file_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with whole_or_absent(Path(".")) as place:
        fill(place, "folder")
    (tmp_path / "file").write_text("old")
    with whole_or_absent(tmp_path / "file") as place:
        fill(place, "file")
    assert content(tmp_path) == {"empty/part": "new", "file": "new"}


def test_hidden_names_stay_hidden() -> None:
    names = [unfinished_path(Path("a") / name) for name in ("b.c", ".b.c")]
    assert names == [Path("a/.b.c.unfinished")] * 2
