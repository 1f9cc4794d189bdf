"""Judge what an attack recovered: target + recovered -> metrics -> one result row. Makes what is missing upstream.

python evaluate.py dataset=digits architecture=cnn defense=random_erasing attack=gmi
python evaluate.py recovered=<reference>
"""

from midefense.report import Row, table
from midefense.verbs import verb


def say(artefact) -> str:
    return table([Row.parse(artefact.metrics)])


main = verb("evaluate", lambda pipeline: pipeline.result, say)

if __name__ == "__main__":
    main()
