# The names of the package and where each one lives; `__init__.py` reads this file too.
from .acting.policy import Policy as Policy
from .commands.run import Run as Run
from .commands.run import evaluate as evaluate
from .commands.run import train as train
from .config import default_config as default_config
from .data.readers import load_trajectories as load_trajectories
from .data.segments import Batch as Batch
from .data.segments import SegmentSampler as SegmentSampler
from .data.trajectories import Trajectories as Trajectories
from .data.writer import save_trajectories as save_trajectories
from .model.decision_transformer import DecisionTransformer as DecisionTransformer
from .model.hf_weights import export_hf as export_hf
from .model.hf_weights import import_hf as import_hf
from .trading.environment import TradingEnv as TradingEnv
from .trading.market import load_market as load_market
from .training.optimizer import make_optimizer as make_optimizer
from .training.train_step import TrainState as TrainState
from .training.train_step import train_step as train_step

__version__: str
