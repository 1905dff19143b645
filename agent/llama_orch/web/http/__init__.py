"""HTTP/1.1 as a service that strangers reach needs it: heads, bodies, connections, and their bounds."""
