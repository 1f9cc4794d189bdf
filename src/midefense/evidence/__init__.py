"""The victim's side: what an attacker is handed per target. The only code reached from `attack.py` that may read
private images."""
