"""te-nn: layers, and a Transformer whose attention learns from a distance matrix (NL-OOB)."""

from . import distances as distances
from .__about__ import __version__ as __version__
from .activation import GELU as GELU
from .activation import LogSoftmax as LogSoftmax
from .activation import ReLU as ReLU
from .activation import Sigmoid as Sigmoid
from .activation import Softmax as Softmax
from .activation import Tanh as Tanh
from .attention import MultiHeadAttention as MultiHeadAttention
from .container import Flatten as Flatten
from .container import ModuleList as ModuleList
from .container import Sequential as Sequential
from .dropout import Dropout as Dropout
from .embedding import Embedding as Embedding
from .linear import Linear as Linear
from .loss import CrossEntropyLoss as CrossEntropyLoss
from .loss import MSELoss as MSELoss
from .loss import SoftmaxCrossEntropyLoss as SoftmaxCrossEntropyLoss
from .module import IncompatibleKeys as IncompatibleKeys
from .module import Module as Module
from .module import Parameter as Parameter
from .module import StateDictError as StateDictError
from .nl_oob import NLOOB as NLOOB
from .nl_oob import BiasFunction as BiasFunction
from .normalization import LayerNorm as LayerNorm
from .transformer import TransformerBlock as TransformerBlock
