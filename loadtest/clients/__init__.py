"""The apps that put the server under load: vendors, customers and what they stand on."""
