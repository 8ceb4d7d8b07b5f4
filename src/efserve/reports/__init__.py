"""Result files made readable: tables, CSV, plots."""
