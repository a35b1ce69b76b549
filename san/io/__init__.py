"""Files and messages: written whole, read safely, listed, opened in processes; user errors and what they may show."""
