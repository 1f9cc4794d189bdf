"""Judge what an attack recovered: target + recovered -> metrics -> one result row. Makes what is missing upstream.

python evaluate.py dataset=digits architecture=cnn defense=random_erasing attack=gmi
python evaluate.py recovered=<reference>
"""

from midefense.commands.evaluate import main

if __name__ == "__main__":
    main()
