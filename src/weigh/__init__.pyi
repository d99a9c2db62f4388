from weigh import dtypes as dtypes
from weigh.api import compare as compare
from weigh.api import generate as generate
from weigh.api import job as job
from weigh.api import kv as kv
from weigh.api import model as model
from weigh.api import params as params
from weigh.api import serve as serve
from weigh.api import train as train
from weigh.hooks import watch as watch

__version__: str
