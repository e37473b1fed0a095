"""What the commands share: exit codes, JAX's settings, output files, JSON, versions."""

import math
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from secrets import token_hex
from tempfile import NamedTemporaryFile
from typing import Any

from qchem.errors import InputError, QChemError

INTERRUPTED = 130
PACKAGES = ("srdft", "jax", "jaxlib", "equinox", "numpy", "scipy", "basis-set-exchange")
OPTIONAL_PACKAGES = ("dftd3", "dftd4")  # named where they are installed
_MISSING = "not installed"


def exit_code(command: Callable[[], int], *, debug: bool, failure: str) -> int:
    """Run a command and return its exit code, with a line for people where it has failed.

    Args:
        command: Returns 0, or 1 for a calculation that failed. What it raises is printed: wrong
            input is 2, an interrupt 130, anything else 1.
        debug: Print the traceback too.
        failure: What a line about anything else begins with.
    """
    try:
        return command()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, InputError):
            say(str(error))
            return 2
        lines = str(error).strip().splitlines() or ["no message"]
        hint = "" if debug else " (--debug shows where)"
        say(f"{failure}: {type(error).__name__}: {lines[0]}{hint}")
        return 1


def show_version(line: str) -> int:
    """Print what `--version` asks for, and return the exit code."""
    try:
        print(line, flush=True)
    except OSError as error:
        say(f"the version cannot be shown: {error.strerror}.")
        return 1
    return 0


def configure_jax() -> None:
    """Use 64-bit numbers, and keep compiled programs in the user's cache directory.

    Each version of this package has a directory of its own there; those that have not been used for
    a month are removed. JAX_COMPILATION_CACHE_DIR, where set, is left to say where; a directory
    that cannot be written means no cache.
    """
    import jax

    from qchem.compilation import remove_unused
    from qchem.fingerprint import source

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "srdft")
        directory = caches / source()[:16]
        directory.mkdir(parents=True, exist_ok=True)
        directory.touch()  # it is in use
        remove_unused(caches)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))


@contextmanager
def output_file(path: Path, source: Path | None = None) -> Iterator[Callable[[str], None]]:
    """A function that puts text into the file of `--out` in one step.

    A file beside it is opened at once, so that a place that cannot be written shows before the
    calculation starts; it takes the place of the named file only when it is complete. Ctrl-C
    meanwhile ends the process and leaves nothing.

    Args:
        path: The file to write.
        source: The geometry that is read, which must not be overwritten.

    Raises:
        InputError: The file cannot be written.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{token_hex(8)}.part")
    try:
        if source is not None and target == source.resolve():
            raise InputError(f"--out would overwrite the geometry {str(source)!r}.")
        if target.exists() and not target.is_file():
            raise InputError(f"cannot write {str(path)!r}: it is not a regular file.")
        if target.exists() and not os.access(target, os.W_OK):
            raise InputError(f"cannot write {str(path)!r}: the file is read-only.")
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}.") from error

    def write(text: str) -> None:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise QChemError(
                f"cannot write {str(path)!r}: {error.strerror}. {_saved(text)}"
            ) from error

    previous = leave_when_interrupted(temporary)
    try:
        yield write
    finally:
        temporary.unlink(missing_ok=True)
        if previous is not None:
            signal.signal(signal.SIGINT, previous)


def _saved(text):
    """Puts what was to be written where there is room for it, and says where."""
    try:
        with NamedTemporaryFile("w", encoding="utf-8", prefix="srdft-", delete=False) as file:
            file.write(text)
    except OSError:
        return "There is no room for it among temporary files either."
    return f"It is kept in {file.name!r}."


def leave_when_interrupted(temporary: Path | None = None) -> Any:
    """From now on Ctrl-C ends the process at once, with its exit code: an exception would end in a
    traceback, a crash or nothing at all where modules are imported or the compiler is at work.

    Args:
        temporary: A file to remove.

    Returns:
        What Ctrl-C did before; None in a thread, which cannot change it.
    """
    if threading.current_thread() is not threading.main_thread():
        return None

    def leave(number, frame):
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""  # which a bar of progress hides
        with suppress(OSError):
            os.write(2, show_cursor + b"interrupted\n")
        os._exit(INTERRUPTED)

    return signal.signal(signal.SIGINT, leave)


def jsonable(value: Any) -> Any:
    """The value in JSON's types; arrays become lists, and what is not finite becomes null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    import numpy as np  # after `leave_when_interrupted`

    return jsonable(np.asarray(value).tolist())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {name: version(name) for name in PACKAGES}
    optional = {name: version(name) for name in OPTIONAL_PACKAGES}
    found |= {name: known for name, known in optional.items() if known != _MISSING}
    return {"python": platform.python_version(), **found}


def version(package: str) -> str:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _MISSING


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)
