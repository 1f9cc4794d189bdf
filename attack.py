"""Attack a target through its oracle: prior + attack -> recovered latents in the store.

python attack.py dataset=digits architecture=cnn defense=none attack=gmi
python attack.py target=<reference> attack=mi_face
"""

from midefense.commands.attack import main

if __name__ == "__main__":
    main()
