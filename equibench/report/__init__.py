"""Tables for people: markdown for the repository, rich text for the terminal."""
