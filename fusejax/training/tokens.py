"""The run's token sequences, kept beside its checkpoints.

A resumed run must train on exactly the same tokens, whatever a later release makes of a conversation. So data are
tokenised once, and the tokens read again after a restart, which also saves time.
"""

import dataclasses
import json
import zipfile
import zlib

import numpy as np
from etils import epath

from fusejax.common.cli import UserError, one_line
from fusejax.common.files import local_copy, replacing
from fusejax.data.examples import Rejection, Tokenized


def save(path: epath.Path, identity: dict[str, str], tokenized: Tokenized) -> None:
    """Keeps a split's tokens, together with what they were made from."""
    fields = {field.name: getattr(tokenized, field.name) for field in dataclasses.fields(tokenized)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    # A field that has nothing is left out: a release that did not have it reads the file, too.
    header = {name: value for name, value in fields.items() if name not in arrays and value is not None}
    header["identity"] = identity
    header["rejected"] = [dataclasses.asdict(rejection) for rejection in tokenized.rejected]
    with replacing(path) as file:
        np.savez(file, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]  # none is called allow_pickle


def load(path: epath.Path, identity: dict[str, str]) -> Tokenized | None:
    """The tokens kept at `path`; None if there are none, or if they were made from anything else.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with local_copy(path) as local, np.load(local) as file:
            header = json.loads(str(file["header"]))
            if header.pop("identity") != identity:
                return None
            if "truncated" in header:  # by a release that counted the examples which were cut, and no other changes
                cut = header.pop("truncated")
                header["changes"] = {"cut": ["?"] * cut} if cut else {}
            header["rejected"] = [Rejection(**rejection) for rejection in header["rejected"]]
            return Tokenized(**header, **{name: file[name] for name in file.files if name != "header"})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); delete it to tokenize again") from None
