"""What engines make of a model's files once and keep: optimized forms whose weights are mapped instead of read.

A form lies in `.cache` of the version folder, or in the user's cache where that cannot be written. It is found by the
content of the model's files, the engine's library, the processor and the engine's own choices, so another model or
machine never finds it. It appears whole, by one rename, and is used only as it was written.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from efserve.config import kept_forms
from efserve.devices.features import cpu_identity

FOLDER = ".cache"
_SCHEME = "1"  # of what a form's name says; another one finds nothing of this one's
_FACTS = "facts.json"
_MAKING = "making-"
_OTHERS = (".json", ".md", ".plan", ".pt", ".py", ".txt")  # suffixes of files that are no part of an ONNX model
_ABANDONED_S = 24 * 3600.0  # after which whoever was making a form is taken to be gone
_LEAST_BYTES = 1 << 20  # a smaller model is optimized sooner than its form is found

_Facts = dict[str, list[int | str]]  # file -> size, mtime and ctime in ns, inode, SHA-256


@dataclass(frozen=True, slots=True)
class Recipe:
    """Who makes a form, and what beside the model's files decides what comes out."""

    engine: str
    library: str  # with its version
    choices: tuple[str, ...] = ()


class Shelf:
    """The forms of one model version by one recipe; made for one load."""

    def __init__(self, version_folder: Path, recipe: Recipe) -> None:
        self._folder = version_folder
        words = (_SCHEME, recipe.engine, recipe.library, cpu_identity(), *recipe.choices)
        self._prefix = f"{recipe.engine}-{_digest(words)[:16]}-"

    def find(self) -> Path | None:
        """The folder of a form of these files that is as it was written; None: there is none."""
        for place in _places(self._folder):
            with suppress(OSError):  # a place that is not ours to look into has none
                if (found := self._find_in(place)) is not None:
                    return found
        return None

    def make(self, write: Callable[[Path], object]) -> Path | None:
        """The folder of a new form, which `write` fills; None where none may be, or another process is making it.

        What `write` raises is raised. A process that dies in it leaves its mark, so that no other one tries the same
        on this day.
        """
        facts = _stats(self._folder)
        if sum(int(fact[0]) for fact in facts.values()) < _LEAST_BYTES:
            return None
        for place in _places(self._folder):
            with suppress(OSError):
                return self._make_in(place, facts, write)
        return None

    def drop(self, form: Path) -> None:
        """Remove a form that turned out to be of no use."""
        shutil.rmtree(form, ignore_errors=True)

    def _find_in(self, place: Path) -> Path | None:
        if not place.is_dir():
            return None
        found = place / f"{self._prefix}{_content(self._folder, place)}"
        if not found.is_dir():
            return None
        if _is_intact(found):
            return found
        self.drop(found)
        return None

    def _make_in(self, place: Path, facts: _Facts, write: Callable[[Path], object]) -> Path | None:
        place.mkdir(parents=True, exist_ok=True)
        target = place / f"{self._prefix}{_content(self._folder, place)}"
        with _making(place / f"{_MAKING}{target.name}") as folder:
            if folder is None:
                return None
            write(folder)
            (folder / _FACTS).write_text(json.dumps(_hashed(folder, _stats(folder), {})))
            _settle_on_disk(folder)
            if _stats(self._folder) != facts:  # the model was replaced meanwhile
                return None
            if target.exists():  # another process was quicker
                return target
            folder.rename(target)
        for other in place.glob(f"{self._prefix}*"):  # of files that are gone
            if other != target:
                self.drop(other)
        return target


@contextmanager
def _making(folder: Path) -> Iterator[Path | None]:
    """The folder, ours alone and gone afterwards; None where another process has it or died with it lately."""
    try:
        folder.mkdir()
    except FileExistsError:
        if time.time() - folder.stat().st_mtime < _ABANDONED_S:
            yield None
            return
        shutil.rmtree(folder)
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(version_folder: Path) -> Iterator[Path]:
    """Folders that may hold forms, the preferred one first."""
    policy = kept_forms()
    if policy.is_off:
        return
    if policy.folder is None:
        yield version_folder / FOLDER
    own = policy.folder or policy.user_folder
    yield own / _digest((str(version_folder.resolve()),))[:32]


def _content(version_folder: Path, place: Path) -> str:
    """A name for what the files hold. They are read only where size, times or inode are not those last seen."""
    index = place / "content.json"
    known = _read(index)
    facts = _hashed(version_folder, _stats(version_folder), known)
    if facts != known:
        _write(index, facts)
    return _digest(f"{name}\0{fact[-1]}" for name, fact in facts.items())[:32]


def _is_intact(form: Path) -> bool:
    """Whether the files are the ones that were written: by size, times and inode, else by their hash."""
    known = _read(form / _FACTS)
    found = _hashed(form, _stats(form), known)
    if not known or {n: f[-1] for n, f in found.items()} != {n: f[-1] for n, f in known.items()}:
        return False
    if found != known:  # copied from elsewhere, unchanged
        _write(form / _FACTS, found)
    return True


def _stats(folder: Path) -> _Facts:
    """Size, times and inode of each file of the model below the folder; they change when its bytes do."""
    facts: _Facts = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(name for name in files if not name.startswith(".") and not name.endswith(_OTHERS)):
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                found = path.stat()
                facts[str(path.relative_to(folder))] = [
                    found.st_size,
                    found.st_mtime_ns,
                    found.st_ctime_ns,
                    found.st_ino,
                ]
    return facts


def _hashed(folder: Path, facts: _Facts, known: Mapping[str, list[int | str]]) -> _Facts:
    """The facts with the files' hashes: the known ones of files that have not changed since."""
    return {
        name: [*fact, known[name][-1] if known.get(name, [])[:-1] == fact else _file_digest(folder / name)]
        for name, fact in facts.items()
    }


def _read(path: Path) -> _Facts:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    is_whole = isinstance(found, dict) and all(isinstance(fact, list) and len(fact) == 5 for fact in found.values())
    return found if is_whole else {}


def _write(path: Path, facts: _Facts) -> None:
    """Replaces the file at once; where that cannot be, the next load hashes again."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        new.write_text(json.dumps(facts))
        new.replace(path)


def _settle_on_disk(folder: Path) -> None:
    """A form must not appear before its bytes are there, whatever happens to the machine."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(words: Iterator[str] | tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
