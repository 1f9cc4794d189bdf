"""The victim's side: what an attacker is handed per target."""
