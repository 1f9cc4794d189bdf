"""Judge what an attack recovered: target + recovered -> metrics -> one result row. Makes what is missing upstream.

midefense evaluate dataset=digits architecture=cnn defense=random_erasing attack=gmi
midefense evaluate recovered=<reference>
"""

from midefense.pipeline.verbs import verb
from midefense.report import Row, table


def say(artefact) -> str:
    return table([Row.parse(artefact.metrics)])


main = verb("evaluate", lambda pipeline: pipeline.result, say)

if __name__ == "__main__":
    main()
