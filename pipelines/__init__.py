"""Kubeflow pipelines: the DAG of one dataset-attack pair, compiled, run locally or submitted."""
