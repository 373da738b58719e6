"""Kubeflow components, one file a stage. A body is one call into `ngf.stages.run`.

A component's arguments are its stage's: artifacts as KFP artifacts, names as strings, and one dict
for each section of params.yaml that the stage reads. Only the standard library and kfp are imported
at module level, because KFP ships a function's source text and nothing around it.
"""
