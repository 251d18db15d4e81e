"""What adapters learned, as a report: numbers, sentences, tables, figures and one page."""
