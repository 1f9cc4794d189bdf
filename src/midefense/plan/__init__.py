"""What was asked: a configuration composed, checked and bound before any compute is spent."""
