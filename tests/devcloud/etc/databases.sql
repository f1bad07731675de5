-- mariadbd runs this at each start (--init-file). One statement a line: it takes the rest of a line for a syntax error
CREATE DATABASE IF NOT EXISTS keystone;
CREATE DATABASE IF NOT EXISTS glance;
CREATE DATABASE IF NOT EXISTS placement;
CREATE DATABASE IF NOT EXISTS nova;
CREATE DATABASE IF NOT EXISTS nova_api;
CREATE DATABASE IF NOT EXISTS nova_cell0;
CREATE DATABASE IF NOT EXISTS neutron;
CREATE DATABASE IF NOT EXISTS cinder;
GRANT ALL ON keystone.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON glance.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON placement.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON nova.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON nova_api.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON nova_cell0.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON neutron.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
GRANT ALL ON cinder.* TO 'os'@'127.0.0.1' IDENTIFIED BY 'os';
