"""The changes of the tables, each with the one that it follows. What was released is never edited."""
