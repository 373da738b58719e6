"""The image that components run in."""

import functools
import os

from kfp import dsl

from ngf import __version__

# "python" in the name tells KFP's local runner that the image can run Python components.
IMAGE = os.environ.get("NGF_IMAGE", f"localhost/ngf-python:{__version__}")

# The image holds kfp and the project: nothing is installed when a pod starts.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
