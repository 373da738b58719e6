"""report_status: how a run ended, said at its end whatever happened before."""

from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from components._component import component


@component()
def report_status(pair: str, status: PipelineTaskFinalStatus, out: Output[Markdown]):
    """Print how the run ended, and show it in Kubeflow's UI."""
    from pathlib import Path

    line = f"{pair}: {status.state}"
    if status.error_message:
        line += f": {status.error_message}"
    print(line)
    Path(out.path).write_text(f"**{pair}**: {status.state}\n\n{status.error_message or ''}\n")
