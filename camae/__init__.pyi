from camae import dataloader as dataloader
from camae import embedding as embedding
from camae import evaluate as evaluate
from camae import inference as inference
from camae import kernels as kernels
from camae import maps as maps
from camae import model as model
from camae import reproduction as reproduction
from camae import training as training
from camae.embedding import embed as embed
from camae.embedding import embed_screen as embed_screen
from camae.embedding import use as use
from camae.errors import CamaeError as CamaeError
from camae.model import load as load
from camae.reporting import report as report
from camae.training import train as train

__version__: str
