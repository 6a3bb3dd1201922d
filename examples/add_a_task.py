"""Add a benchmark of your own: one `Task`, scored by anything edgequant can load.

    python examples/add_a_task.py --model tiny

Here it is passed to the evaluation by hand. As a package, two lines of its pyproject.toml make every entry point know
it (`edgequant evaluate --evaluation.tasks '[cloze]'`, tune's objectives, reports, `--help`):

    [project.entry-points."edgequant.tasks"]
    cloze = "my_package.cloze:CLOZE"
"""
