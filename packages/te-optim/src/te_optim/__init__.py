"""te-optim: optimizers and learning rate schedules."""

from .__about__ import __version__ as __version__
from .adagrad import Adagrad as Adagrad
from .adam import Adam as Adam
from .adam import AdamW as AdamW
from .clip import clip_grad_value as clip_grad_value
from .clip import clip_gradients as clip_gradients
from .optimizer import Optimizer as Optimizer
from .rmsprop import RMSProp as RMSProp
from .schedule import OneCycleLR as OneCycleLR
from .schedule import Schedule as Schedule
from .sgd import SGD as SGD
