"""te-io: the weights of te-tensor models in and out of files."""

from . import presets as presets
from .__about__ import __version__ as __version__
from .archive import SafetensorsArchive as SafetensorsArchive
from .checkpointer import Checkpointer as Checkpointer
from .checkpointer import CheckpointWarning as CheckpointWarning
from .convert import convert_file as convert_file
from .errors import FormatError as FormatError
from .errors import UnknownTensorError as UnknownTensorError
from .loading import load_into_module as load_into_module
from .loading import py_load_safetensors as py_load_safetensors
from .loading import py_load_safetensors_into_module as py_load_safetensors_into_module
from .pickle_values import OpaqueObject as OpaqueObject
from .presets import Preset as Preset
from .safetensors import load_metadata as load_metadata
from .safetensors import load_safetensors as load_safetensors
from .safetensors import open_safetensors as open_safetensors
from .safetensors import save_safetensors as save_safetensors
from .script_export import export_torchscript as export_torchscript
from .torch_archive import load_torch as load_torch
from .torch_archive import load_torch_state_dict as load_torch_state_dict
from .torchscript import ScriptArchive as ScriptArchive
from .torchscript import load_torchscript as load_torchscript
