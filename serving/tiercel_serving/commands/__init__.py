"""The commands of ``tiercel``, one module each, named in the table of :mod:`tiercel_serving.commands.cli`.

A module has a function ``command`` with typer's annotations, whose docstring is the help text and ends with
an example. It imports heavy modules inside functions, and does its work in a :func:`~.shell.shell`, which
handles errors, signals and the two kinds of output::

    def command(release: ..., json: Json = False, debug: Debug = False) -> None:
        with shell(json=json, debug=debug) as sh:
            with sh.work("Checking") as progress:
                report = ...
            sh.emit(report.to_json(), table_of(report))
"""
