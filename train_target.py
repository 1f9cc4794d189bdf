"""Train a classifier with a defense: dataset x architecture x defense -> a target in the store.

python train_target.py dataset=digits architecture=cnn defense=random_erasing
"""

from midefense.commands.train_target import main

if __name__ == "__main__":
    main()
