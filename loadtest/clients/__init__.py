"""The apps that put the server under load: vendors, customers and their connections."""
