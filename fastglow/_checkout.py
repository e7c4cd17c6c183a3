"""Makes `fastglow.kernels` and `fastglow.train` importable in a checkout that nobody installed.

Their sources stand at the repository's root beside `fastglow/`; setup.py maps them into the package, and a
wheel has them inside it. In a bare checkout this finder does the mapping. It answers for these two names
only: putting the root on `fastglow.__path__` would also make `fastglow.fastglow`, `fastglow.tests` and
`fastglow.setup` importable, second copies of modules that exist under another name.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = {f"fastglow.{name}": _PACKAGE.parent / name for name in ("kernels", "train")}


class CheckoutFinder:
    """A meta path finder (`importlib.abc.MetaPathFinder`) for the sub-packages beside the package."""

    @staticmethod
    def find_spec(fullname: str, path=None, target=None) -> ModuleSpec | None:
        folder = _FOLDERS.get(fullname)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def install() -> None:
    """Register the finder if this is a checkout: the sub-packages are beside the package, none inside it.

    An installed copy has them inside, so that whatever else is called `kernels` or `train` in the folder
    that holds it is left alone. The finder goes last: an editable install's own mapping is asked first.
    """
    inside = any((_PACKAGE / folder.name).exists() for folder in _FOLDERS.values())
    beside = all((folder / "__init__.py").is_file() for folder in _FOLDERS.values())
    if beside and not inside and CheckoutFinder not in sys.meta_path:
        sys.meta_path.append(CheckoutFinder)
