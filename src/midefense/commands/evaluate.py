"""Judge what an attack recovered: target + recovered -> metrics -> one result row. Makes what is missing upstream.

midefense evaluate dataset=digits architecture=cnn defense=random_erasing attack=pool_small
midefense evaluate recovered=<reference>
"""

from midefense.commands.entry import entry


def say(artefact) -> str:
    from midefense.report import Row, table

    return table([Row.parse(artefact.metrics)])


main = entry("evaluate", lambda pipeline: pipeline.result, say)

if __name__ == "__main__":
    main()
