"""The apps that generate load: vendors, customers and their connections."""
