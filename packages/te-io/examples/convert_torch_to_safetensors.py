"""Convert a PyTorch file to safetensors, without PyTorch.

    python convert_torch_to_safetensors.py model.pt model.safetensors
    python convert_torch_to_safetensors.py checkpoint.ckpt model.safetensors --key state_dict
    python convert_torch_to_safetensors.py model.pt model.safetensors --transpose   # from [in, out]

The same as `te-io convert`, in few lines. Files that hold more than tensors and plain values are
refused; --with-torch lets PyTorch unpickle them, which runs whatever code they bring.
"""

from __future__ import annotations

import argparse
import sys

from te_io import FormatError, convert_file, open_safetensors


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert a PyTorch file to safetensors.")
    parser.add_argument("source", help="a .pt, .pth or .ckpt file, or TorchScript")
    parser.add_argument("target", help="the .safetensors file to write")
    parser.add_argument("--key", help="where in the file the state dict is")
    parser.add_argument("--transpose", action="store_true", help="turn Linear weights [in, out]")
    parser.add_argument("--dtype", help="store all floats so: bfloat16, float16, float32")
    parser.add_argument("--with-torch", action="store_true", help="unpickle with PyTorch: unsafe")
    options = parser.parse_args(arguments)
    try:
        convert_file(**vars(options))
        with open_safetensors(options.target) as archive:
            for name, shape in archive.shapes.items():
                print(name, shape, archive.dtypes[name])
    except (FormatError, OSError, ValueError, ModuleNotFoundError) as error:
        print(f"convert_torch_to_safetensors.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
