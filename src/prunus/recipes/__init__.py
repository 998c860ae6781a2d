"""The paper's tasks and the embedded default, runnable by ``prunus run``."""
