"""The public names, for type checkers, and for __init__.py, which finds each where it is imported from here."""

from .errors import BudgetError as BudgetError
from .errors import CheckpointError as CheckpointError
from .errors import ConfigError as ConfigError
from .errors import ExactVAEError as ExactVAEError
from .errors import InputError as InputError
from .errors import MissingPackageError as MissingPackageError
from .errors import NonFiniteError as NonFiniteError
from .errors import StateDictError as StateDictError
from .errors import UnknownModelError as UnknownModelError
from .loading import load as load
from .loading import load_embedded as load_embedded
from .models import AutoencoderKL as AutoencoderKL
from .models import AutoencoderKLCogVideoX as AutoencoderKLCogVideoX
from .models import AutoencoderKLFlux2 as AutoencoderKLFlux2
from .models import AutoencoderKLQwenImage as AutoencoderKLQwenImage
from .models import AutoencoderKLWan as AutoencoderKLWan
from .models import AutoencoderTiny as AutoencoderTiny
from .nets.posterior import AutoencoderKLOutput as AutoencoderKLOutput
from .nets.posterior import AutoencoderTinyOutput as AutoencoderTinyOutput
from .nets.posterior import DecoderOutput as DecoderOutput
from .nets.posterior import DiagonalGaussianDistribution as DiagonalGaussianDistribution
from .plan import Plan as Plan
from .report import Report as Report
from .spec import VARIANTS as VARIANTS
from .spec import Spec as Spec
from .spec import Variant as Variant
from .stream import Progress as Progress
from .vae import VAE as VAE

__version__: str
