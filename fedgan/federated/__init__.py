"""How sites work together; knows no network."""
