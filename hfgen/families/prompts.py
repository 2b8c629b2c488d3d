"""Files of prompts: texts that samples are to show."""

from ..disk.reading import read_text


def prompts_in(path: str | None) -> list[str]:
    """Return the prompts of a file, a line each, without empty lines; [] without a file.

    Raises:
        ValueError: the file holds none, or can't be read.
    """
    if path is None:
        return []
    try:
        prompts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"--prompts {path} can't be read: {error.strerror or error}.") from None
    if not prompts:
        raise ValueError(f"--prompts {path} holds no prompt. Write one on each line.")
    return prompts
