"""Tables for people, made of records alone: markdown for the repository, rich text for the terminal."""
