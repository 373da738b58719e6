"""How components are made."""

import functools

from kfp import dsl

# A pair's tasks get their image from `cluster:` of params.yaml (pipelines/image.py). "python" in
# the name tells KFP's local runner that the image can run Python components. The image holds kfp
# and the project: nothing is installed when a pod starts.
component = functools.partial(
    dsl.component, base_image="localhost/ngf-python", install_kfp_package=False
)
