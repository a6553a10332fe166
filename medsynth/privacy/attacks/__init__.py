"""What an attacker learns, measured: attack, control and baseline."""
