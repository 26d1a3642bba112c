"""Reads mutated files of PyTorch: nothing but FormatError may come out, soon and in little memory.

    python fuzz.py --seconds 60               # as `nox -s fuzz`
    python fuzz.py --seconds 60 --seed 7      # the same inputs again
    python fuzz.py --seconds 60 --guided      # led by coverage, where atheris is installed

Mutations know the formats: opcodes of pickles and their arguments, fields of zip directories,
lines of code; archives are put together again so that the mutated part is reached. An input that
fails is written to fuzz-failures/ as base64; kept in tests/failures/, it is a test.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import pickletools
import random
import re
import struct
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from te_io import FormatError, load_torch, load_torch_state_dict, load_torchscript
from te_tensor import Tensor

ASSETS = Path(__file__).parent / "assets"
FAILURES = Path("fuzz-failures")
#: The longest that an input may take. Reading takes milliseconds; machines may be busy.
SECONDS = 5
LIMITS = {"max_memory": 1 << 24, "max_opcodes": 100_000}
NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, -1)
NAMES = (
    *("os.system", "builtins.eval", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"),
    *("torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch.float64"),
    *("torch._tensor._rebuild_from_type_v2", "torch.Tensor", "torch.storage.UntypedStorage"),
    *("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "torch.Size"),
    *("builtins.set", "builtins.list", "builtins.dict", "builtins.long", "_codecs.encode"),
    *("torch.device", "torch.jit._pickle.restore_type_tag", "torch.jit._pickle.build_intlist"),
    *("torch.BoolStorage", "torch.ComplexFloatStorage", "__torch__.Net", "a.B"),
)


# -- reading --------------------------------------------------------------------------------


def touch(value: Any) -> None:
    """Use everything in a structure, as whoever loaded it would."""
    if isinstance(value, Tensor):
        if value.size < 1 << 20:
            value.numpy().tobytes()
    elif isinstance(value, dict):
        for inner in value.values():
            touch(inner)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            touch(inner)
    repr(type(value))


READERS: tuple[Callable[[bytes], Any], ...] = (
    lambda content: load_torch(content, **LIMITS),
    lambda content: load_torch(content, on_unknown="opaque", verify=False, **LIMITS),
    lambda content: load_torch_state_dict(content, on_unknown="opaque", **LIMITS),
    lambda content: load_torchscript(content, verify=False, **LIMITS).tensors,
)


def read(content: bytes) -> Counter[str]:
    """Read an input in every way; how often it was accepted, and how often refused.

    Raises:
        AssertionError: it took too long.
        BaseException: whatever comes out that isn't a FormatError.
    """
    outcomes: Counter[str] = Counter()
    for reader in READERS:
        begin = time.perf_counter()
        try:
            touch(reader(content))
        except FormatError:
            outcomes["refused"] += 1
        else:
            outcomes["accepted"] += 1
        seconds = time.perf_counter() - begin
        assert seconds < SECONDS, f"took {seconds:.1f} s"
    return outcomes


# -- mutations ------------------------------------------------------------------------------


def mutate_bytes(content: bytes, dice: random.Random) -> bytes:
    """Bits turned, bytes left out, repeated, or replaced by numbers at limits."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        if not data:
            break
        place, length = dice.randrange(len(data)), dice.choice((1, 2, 4, 8, 64))
        match dice.randrange(6):
            case 0:
                data[place] ^= 1 << dice.randrange(8)
            case 1:
                data[place] = dice.randrange(256)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                width = dice.choice((1, 2, 4, 8))
                value = dice.choice(NUMBERS) % (1 << 8 * width)
                data[place : place + width] = value.to_bytes(width, "little")
            case 5:
                del data[place:]
    return bytes(data)


def split_pickle(content: bytes) -> list[bytes]:
    """The opcodes of the pickles in a row that some bytes begin with, arguments included."""
    stream = io.BytesIO(content)
    opcodes: list[bytes] = []
    try:
        while True:
            start = stream.tell()
            places = [place for _, _, place in pickletools.genops(stream)]
            ends = [*places[1:], stream.tell()]
            opcodes += [content[i:j] for i, j in zip(places, ends, strict=True)]
            assert stream.tell() > start
    except (ValueError, Warning):  # of escapes that are none
        return opcodes


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(dotted: str) -> bytes:
    module, _, last = dotted.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def mutate_pickle(opcodes: list[bytes], dice: random.Random, pool: list[bytes]) -> list[bytes]:
    """Opcodes left out, repeated, moved, taken from other pickles, or with other arguments."""
    opcodes = list(opcodes)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not opcodes:
            break
        place = dice.randrange(len(opcodes))
        other = dice.randrange(len(opcodes))
        match dice.randrange(9):
            case 0:
                del opcodes[place]
            case 1:
                opcodes.insert(place, opcodes[other])
            case 2:
                opcodes[place], opcodes[other] = opcodes[other], opcodes[place]
            case 3:
                opcodes.insert(place, dice.choice(pool))
            case 4:
                opcodes[place] = dice.choice(pool)
            case 5:
                part = opcodes[place : place + dice.randrange(1, 12)]
                opcodes[other:other] = part * dice.choice((1, 1, 2, 50))
            case 6:
                numbers = [i for i, x in enumerate(opcodes) if x[:1] in b"KMJ\x8a\x88\x89N"]
                opcodes[dice.choice(numbers or [place])] = number(dice.choice(NUMBERS))
            case 7:
                names = [i for i, x in enumerate(opcodes) if x[:1] == b"c"]
                opcodes[dice.choice(names or [place])] = name(dice.choice(NAMES))
            case 8:
                opcodes[place] = mutate_bytes(opcodes[place], dice)
    return opcodes


def mutate_code(content: bytes, dice: random.Random) -> bytes:
    """Lines left out, repeated, moved, or with other words."""
    lines = content.split(b"\n")
    place, other = dice.randrange(len(lines)), dice.randrange(len(lines))
    match dice.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[other])
        case 2:
            words = [
                b"[" * 200,
                b"(" * 99,
                b'"a|b", "a.b"',
                b"9" * 900,
                b"Final[int] = -" * 50,
                b"\xff",
                b"\\",
            ]
            word = dice.choice(words)
            lines[place] = re.sub(rb"\w+", lambda _: word, lines[place], count=1)
        case 3:
            lines[place] = mutate_bytes(lines[place], dice)
    return b"\n".join(lines)


class Mutator:
    """Mutates inputs; the same seed gives the same ones.

    Args:
        seeds: good files.
    """

    def __init__(self, seeds: list[bytes]) -> None:
        self.pool = [name(dotted) for dotted in NAMES] + [number(n) for n in NUMBERS]
        self.pool += [
            bytes([code]) for code in b"().0125NQRabdehstu}]l\x81\x85\x86\x87\x88\x89\x8f\x90"
        ]
        self.pool += [
            text(value) for value in ("storage", "0", "../0", "cpu", "meta", "conj", "neg")
        ]
        for seed in seeds:
            self.pool += split_pickle(self.members(seed).get("data.pkl", seed))[:400]

    def members(self, content: bytes) -> dict[str, bytes]:
        """The members of an archive without their root folder; {} for something else."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                return {path.partition("/")[2]: file.read(path) for path in file.namelist()}
        except Exception:  # zipfile itself isn't what is tried here
            return {}

    def mutate(self, content: bytes, dice: random.Random) -> bytes:
        """Another input, made from a good or a mutated one."""
        members = self.members(content)
        if not members:
            if dice.random() < 0.3:
                return mutate_bytes(content, dice)
            opcodes = split_pickle(content)
            rest = content[sum(map(len, opcodes)) :]
            return b"".join(mutate_pickle(opcodes, dice, self.pool)) + rest
        match dice.randrange(10):
            case 0:
                return mutate_bytes(content, dice)
            case 1 | 2:
                start = content.find(b"PK\1\2")
                return content[:start] + mutate_bytes(content[start:], dice)
        names = list(members)
        pickles = [path for path in names if path.endswith("data.pkl")] * 4
        chosen = dice.choice([*names, *pickles])
        if chosen.endswith(".pkl"):
            opcodes = mutate_pickle(split_pickle(members[chosen]), dice, self.pool)
            members[chosen] = b"".join(opcodes)
        elif chosen.endswith(".py"):
            members[chosen] = mutate_code(members[chosen], dice)
        elif dice.random() < 0.5:
            members[chosen] = mutate_bytes(members[chosen], dice)
        else:
            members[dice.choice((*names, "data/1", "../x", "extra/a"))] = members.pop(chosen)
        return self.archive(members, dice)

    def archive(self, members: dict[str, bytes], dice: random.Random) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for path, content in members.items():
                method = zipfile.ZIP_DEFLATED if dice.random() < 0.02 else zipfile.ZIP_STORED
                file.writestr(f"a/{path}", content, method)
        return buffer.getvalue()


# -- runs -----------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Good files: those kept as text, and of packages that are installed."""
    found = [base64.b64decode(path.read_bytes()) for path in sorted(ASSETS.glob("*.b64"))]
    for package, path in (
        ("facenet_pytorch", "data/pnet.pt"),
        ("silero_vad", "data/silero_vad.jit"),
    ):
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found.append(Path(spec.submodule_search_locations[0], path).read_bytes())
    return found


def limit_memory(count: int = 1 << 28) -> None:
    """Let this process have so much more memory than it has, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ModuleNotFoundError, OSError):
        return
    allowed = pages * resource.getpagesize() + count
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def report(content: bytes, error: BaseException) -> None:
    """Keep an input that failed."""
    FAILURES.mkdir(exist_ok=True)
    path = FAILURES / f"{hashlib.sha256(content).hexdigest()[:16]}.b64"
    path.write_bytes(base64.encodebytes(content))
    print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def run(seconds: float, seed: int) -> int:
    """Mutate for so long; the number of inputs that failed."""
    good = seeds()
    for content in good:
        read(content)
    mutator = Mutator(good)
    limit_memory()
    outcomes: Counter[str] = Counter()
    failures = inputs = 0
    latest: list[bytes] = []  # accepted mutations, which lead further than good files
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        dice = random.Random(f"{seed}:{inputs}")
        content = dice.choice(latest if latest and dice.random() < 0.3 else good)
        for _ in range(dice.choice((1, 1, 2))):
            content = mutator.mutate(content, dice)
        inputs += 1
        try:
            found = read(content)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures += 1
            report(content, error)
            continue
        outcomes += found
        if found["accepted"] and len(content) < 100_000:
            latest = [*latest[-99:], content]
    print(f"{inputs} inputs from seed {seed} in {seconds:.0f} s, {failures} failed")
    print(f"read in {len(READERS)} ways each: {dict(outcomes)}")
    return failures


def run_guided(seconds: float, seed: int) -> None:
    """Let atheris choose which inputs to mutate further, by the lines that they reach."""
    import atheris

    good = seeds()
    mutator = Mutator(good)
    folder = Path("fuzz-corpus")
    folder.mkdir(exist_ok=True)
    for content in good:
        (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)

    def mutate(content: bytes, most: int, number: int) -> bytes:
        return mutator.mutate(content, random.Random(number))[:most]

    def test(content: bytes) -> None:
        try:
            read(content)
        except BaseException as error:
            report(content, error)
            raise

    atheris.instrument_all()
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-max_len=100000"]
    atheris.Setup([sys.argv[0], *options, str(folder)], test, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="led by coverage, with atheris")
    options = parser.parse_args()
    warnings.simplefilter("error")
    if options.guided:
        run_guided(options.seconds, options.seed)
        return 0
    return int(run(options.seconds, options.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
