"""The style of the house, where it meets a notebook."""

import nbclient
import nbformat

PLOT = "tl.plot_history([{'phase': 'head', 'epoch': k, 'accuracy': 0.5, 'val_accuracy': 0.5} for k in (1, 2)]);"


def test_every_figure_is_shown_in_a_notebook_and_not_the_first_only():
    cells = [nbformat.v4.new_code_cell(text) for text in ("import tlkeras as tl\n" + PLOT, PLOT)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    for cell in notebook.cells:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)
