"""What the attacker believes images look like."""
